// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {MemberRegistry} from "../src/MemberRegistry.sol";
import {TaskBoard} from "../src/TaskBoard.sol";
import {Federation} from "./Federation.sol";

/// Gas of whole transactions, intrinsic gas and call data included: each call is a transaction of its own.
/// snapshots/GasTest.json keeps the figures; a run that finds others fails.
/// forge-config: default.isolate = true
contract GasTest is Federation {
    uint16 internal constant FOUNDERS = 64;

    /// A federation of n members whose task has its first result.
    function steady(uint16 n) internal returns (uint64 task) {
        found(n < FOUNDERS ? n : FOUNDERS);
        for (uint16 i = FOUNDERS; i < n; ++i) {
            govern(address(registry), change(i, record(i)));
        }
        task = openTask();
        does(signerOf(0), address(rounds), finalizing(result(task)));
    }

    function finalize(uint16 n, string memory name) internal {
        uint64 task = steady(n);
        does(signerOf(0), address(rounds), finalizing(result(task)));
        vm.snapshotGasLastCall(name);
    }

    function test_finalize_with_4_members() public {
        finalize(4, "finalize, 4 members");
    }

    function test_finalize_with_10_members() public {
        finalize(10, "finalize, 10 members");
    }

    function test_finalize_with_32_members() public {
        finalize(32, "finalize, 32 members");
    }

    function test_finalize_with_100_members() public {
        finalize(100, "finalize, 100 members");
    }

    function test_finalize_with_200_members() public {
        finalize(200, "finalize, 200 members");
    }

    function test_direct() public {
        uint64 task = steady(10);
        does(signerOf(3), address(rounds), committing(commitment(task, 3)));
        vm.snapshotGasLastCall("commitDirect, 10 members");
        does(signerOf(3), address(rounds), revealing(task, 3));
        vm.snapshotGasLastCall("revealDirect");
    }

    function test_governance() public {
        found(10);
        does(ownerOf(0), address(board), open("salt"));
        vm.snapshotGasLastCall("openTask, first approval");
        does(ownerOf(1), address(board), open("salt"));
        vm.snapshotGasLastCall("openTask, another approval");
        for (uint256 i = 2; i < 6; ++i) {
            does(ownerOf(i), address(board), open("salt"));
        }
        does(ownerOf(6), address(board), open("salt"));
        vm.snapshotGasLastCall("openTask, last approval");
        govern(address(board), abi.encodeCall(TaskBoard.closeTask, (1)));
        vm.snapshotGasLastCall("closeTask, last approval");
        govern(address(registry), change(10, record(10)));
        vm.snapshotGasLastCall("changeMember, last approval, append to 10 members");
        govern(address(registry), change(10, nobody()));
        vm.snapshotGasLastCall("changeMember, last approval, empty a seat");
        govern(address(registry), abi.encodeCall(MemberRegistry.setSuccessor, (address(1), "salt")));
        vm.snapshotGasLastCall("setSuccessor, last approval");
    }

    function test_the_seats_own_business() public {
        found(10);
        string[] memory addresses = new string[](1);
        addresses[0] = "/ip4/192.0.2.1/tcp/4001";
        does(signerOf(2), address(registry), abi.encodeCall(MemberRegistry.announce, (2, addresses)));
        vm.snapshotGasLastCall("announce, one address");
        MemberRegistry.Member memory r = record(77);
        address signer = vm.addr(777);
        bytes memory call = abi.encodeCall(
            MemberRegistry.rotate,
            (
                2,
                signer,
                r.peerId,
                r.boxKey,
                r.boxKeySignature,
                sign(777, registry.digestRotation(1, 2, signer))
            )
        );
        does(ownerOf(2), address(registry), call);
        vm.snapshotGasLastCall("rotate, 10 members");
    }
}
