// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Governed} from "../src/Governed.sol";
import {MemberRegistry} from "../src/MemberRegistry.sol";
import {TaskBoard} from "../src/TaskBoard.sol";
import {Federation} from "./Federation.sol";

contract TaskBoardTest is Federation {
    function setUp() public {
        found(7);
    }

    function test_the_fifth_of_seven_owners_opens_the_task() public {
        vm.warp(1_700_000_000);
        for (uint256 i = 0; i < 4; ++i) {
            does(ownerOf(i), address(board), open(0));
            vm.assertEq(board.taskCount(), 0);
        }
        vm.expectEmit(address(board));
        emit TaskBoard.TaskOpened(1, terms(), 1);
        bytes memory answer = does(ownerOf(4), address(board), open(0));
        vm.assertEq(abi.decode(answer, (uint64)), 1);
        vm.assertEq(board.taskCount(), 1);
        (TaskBoard.Terms memory got, TaskBoard.Status status, uint64 openedAt, uint32 epoch) = board.task(1);
        vm.assertEq(abi.encode(got), abi.encode(terms()));
        vm.assertTrue(status == TaskBoard.Status.OPEN);
        vm.assertEq(openedAt, 1_700_000_000);
        vm.assertEq(epoch, 1);
        vm.assertEq(board.specificationOf(1), terms().specification);
        vm.assertEq(board.scheduleOf(1).rounds, 3);
    }

    function test_the_first_call_publishes_what_the_others_repeat() public {
        bytes memory call = open(0);
        bytes32 id = board.actionId(call);
        vm.expectEmit(address(board));
        emit Governed.ActionProposed(id, 3, call);
        vm.expectEmit(address(board));
        emit Governed.ActionApproved(id, 3, 1);
        does(ownerOf(3), address(board), call);
        vm.expectEmit(address(board));
        emit Governed.ActionApproved(id, 0, 2);
        does(ownerOf(0), address(board), call);
        (uint256 given, uint16 count, bool executed) = board.approvalsOf(id);
        vm.assertEq(given, 0x9);
        vm.assertEq(count, 2);
        vm.assertFalse(executed);
    }

    function test_execution_is_announced() public {
        bytes memory call = open(0);
        bytes32 id = board.actionId(call);
        for (uint256 i = 0; i < 4; ++i) {
            does(ownerOf(i), address(board), call);
        }
        vm.expectEmit(address(board));
        emit Governed.ActionExecuted(id);
        does(ownerOf(4), address(board), call);
        (,, bool executed) = board.approvalsOf(id);
        vm.assertTrue(executed);
    }

    function test_a_member_approves_once() public {
        does(ownerOf(2), address(board), open(0));
        bytes32 id = board.actionId(open(0));
        refuses(
            ownerOf(2),
            address(board),
            open(0),
            abi.encodeWithSelector(Governed.AlreadyApproved.selector, id, 2)
        );
    }

    function test_an_approval_after_the_quorum_is_refused() public {
        openTask();
        bytes memory call = open(0);
        refuses(
            ownerOf(6),
            address(board),
            call,
            abi.encodeWithSelector(Governed.AlreadyExecuted.selector, board.actionId(call))
        );
    }

    function test_the_same_terms_open_again_under_another_salt() public {
        vm.assertEq(openTask(), 1);
        vm.assertEq(openTask(), 2);
    }

    function test_approvals_of_a_former_electorate_are_void() public {
        for (uint256 i = 0; i < 4; ++i) {
            does(ownerOf(i), address(board), open(0));
        }
        bytes32 before = board.actionId(open(0));
        govern(address(registry), change(6, nobody()));
        vm.assertFalse(before == board.actionId(open(0)));
        does(ownerOf(4), address(board), open(0));
        vm.assertEq(board.taskCount(), 0);
        (, uint16 count,) = board.approvalsOf(board.actionId(open(0)));
        vm.assertEq(count, 1);
    }

    function test_a_rotation_leaves_approvals_standing() public {
        for (uint256 i = 0; i < 4; ++i) {
            does(ownerOf(i), address(board), open(0));
        }
        MemberRegistry.Member memory r = record(6);
        bytes32[2] memory possession;
        possession = sign(777, registry.digestRotation(1, 6, vm.addr(777)));
        does(
            ownerOf(6),
            address(registry),
            abi.encodeCall(
                MemberRegistry.rotate, (6, vm.addr(777), r.peerId, r.boxKey, r.boxKeySignature, possession)
            )
        );
        does(ownerOf(4), address(board), open(0));
        (,,, uint32 epoch) = board.task(1);
        vm.assertEq(epoch, 2);
    }

    function test_approvals_count_for_the_board_that_got_them_alone() public {
        TaskBoard other = new TaskBoard(registry);
        vm.assertFalse(other.actionId(open(0)) == board.actionId(open(0)));
    }

    function test_a_stranger_has_no_say() public {
        bytes memory expected = abi.encodeWithSelector(MemberRegistry.NotAMember.selector, STRANGER);
        refuses(STRANGER, address(board), open(0), expected);
        openTask();
        refuses(STRANGER, address(board), abi.encodeCall(TaskBoard.closeTask, (1)), expected);
    }

    function test_a_signer_is_not_an_owner() public {
        refuses(
            signerOf(0),
            address(board),
            open(0),
            abi.encodeWithSelector(MemberRegistry.NotAMember.selector, signerOf(0))
        );
    }

    function test_terms_without_digests_rounds_or_windows_are_refused() public {
        TaskBoard.Terms memory t = terms();
        t.specification = 0;
        refusesTerms(t, TaskBoard.DigestMissing.selector);
        t = terms();
        t.genesis = 0;
        refusesTerms(t, TaskBoard.DigestMissing.selector);
        t = terms();
        t.rounds = 0;
        refusesTerms(t, TaskBoard.NoRounds.selector);
        t = terms();
        t.commitWindow = 0;
        refusesTerms(t, TaskBoard.ZeroWindow.selector);
        t = terms();
        t.revealWindow = 0;
        refusesTerms(t, TaskBoard.ZeroWindow.selector);
    }

    function refusesTerms(TaskBoard.Terms memory t, bytes4 selector) internal {
        refuses(
            ownerOf(0),
            address(board),
            abi.encodeCall(TaskBoard.openTask, (t, bytes32(0))),
            abi.encodeWithSelector(selector)
        );
    }

    function test_a_quorum_closes_a_task_for_ever() public {
        openTask();
        bytes memory call = abi.encodeCall(TaskBoard.closeTask, (1));
        for (uint256 i = 0; i < 4; ++i) {
            does(ownerOf(i), address(board), call);
            vm.assertTrue(board.scheduleOf(1).status == TaskBoard.Status.OPEN);
        }
        vm.expectEmit(address(board));
        emit TaskBoard.TaskClosed(1);
        does(ownerOf(4), address(board), call);
        vm.assertTrue(board.scheduleOf(1).status == TaskBoard.Status.CLOSED);
        refuses(ownerOf(5), address(board), call, abi.encodeWithSelector(TaskBoard.TaskNotOpen.selector, 1));
    }

    function test_an_unknown_task_has_neither_terms_nor_schedule_nor_end() public {
        bytes memory expected = abi.encodeWithSelector(TaskBoard.UnknownTask.selector, 1);
        refuses(ownerOf(0), address(board), abi.encodeCall(TaskBoard.task, (1)), expected);
        refuses(ownerOf(0), address(board), abi.encodeCall(TaskBoard.scheduleOf, (1)), expected);
        refuses(ownerOf(0), address(board), abi.encodeCall(TaskBoard.specificationOf, (1)), expected);
        refuses(ownerOf(0), address(board), abi.encodeCall(TaskBoard.closeTask, (1)), expected);
    }

    function test_fuzz_what_was_agreed_is_what_is_kept(TaskBoard.Terms calldata t, bytes32 salt) public {
        vm.assume(t.specification != 0 && t.genesis != 0 && t.rounds != 0);
        vm.assume(t.commitWindow != 0 && t.revealWindow != 0);
        govern(address(board), abi.encodeCall(TaskBoard.openTask, (t, salt)));
        (TaskBoard.Terms memory got,,,) = board.task(1);
        vm.assertEq(abi.encode(got), abi.encode(t));
        govern(address(board), abi.encodeCall(TaskBoard.closeTask, (1)));
    }

    function test_fuzz_no_four_of_seven_open_a_task(uint8 chosen) public {
        uint256 count = 0;
        for (uint256 i = 0; i < 7; ++i) {
            if (uint256(chosen) & (1 << i) == 0) continue;
            ++count;
            if (count > 5) continue;
            does(ownerOf(i), address(board), open(0));
        }
        vm.assertEq(board.taskCount(), count >= 5 ? 1 : 0);
    }
}
