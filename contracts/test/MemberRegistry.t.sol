// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Governed} from "../src/Governed.sol";
import {MemberRegistry} from "../src/MemberRegistry.sol";
import {Federation} from "./Federation.sol";

contract MemberRegistryTest is Federation {
    function setUp() public {
        found(5);
    }

    function founding(MemberRegistry.Member[] memory initial) internal returns (bytes memory) {
        try new MemberRegistry(initial) returns (MemberRegistry) {
            return "";
        } catch (bytes memory failure) {
            return failure;
        }
    }

    function founders(uint16 n) internal pure returns (MemberRegistry.Member[] memory initial) {
        initial = new MemberRegistry.Member[](n);
        for (uint256 i = 0; i < n; ++i) {
            initial[i] = record(i);
        }
    }

    function rotating(uint16 index, MemberRegistry.Member memory r, uint256 key)
        internal
        view
        returns (bytes memory)
    {
        bytes32 digest = registry.digestRotation(registry.changedAt(index), index, vm.addr(key));
        return rotating(index, r, vm.addr(key), sign(key, digest));
    }

    function rotating(
        uint16 index,
        MemberRegistry.Member memory r,
        address signer,
        bytes32[2] memory possession
    ) internal pure returns (bytes memory) {
        return abi.encodeCall(
            MemberRegistry.rotate, (index, signer, r.peerId, r.boxKey, r.boxKeySignature, possession)
        );
    }

    function test_the_founding_epoch_is_one() public view {
        MemberRegistry.Head memory head = registry.head();
        vm.assertEq(head.epoch, 1);
        vm.assertEq(head.electorate, 1);
        vm.assertEq(head.size, 5);
        vm.assertEq(head.members, 5);
        vm.assertEq(head.quorum, 4);
        vm.assertEq(head.successor, address(0));
        vm.assertEq(registry.epoch(), 1);
        vm.assertEq(registry.sizeOf(1), 5);
        vm.assertEq(registry.quorumOf(1), 4);
        vm.assertEq(registry.epochAt(1).active, 0x1f);
        vm.assertEq(registry.signersOf(1)[3], signerOf(3));
        vm.assertEq(abi.encode(registry.members(1)), abi.encode(founders(5)));
        vm.assertEq(abi.encode(registry.memberAt(2)), abi.encode(record(2)));
    }

    function test_a_founding_auditor_neither_signs_nor_counts() public {
        MemberRegistry.Member[] memory initial = founders(5);
        initial[1] = auditor(1);
        MemberRegistry other = new MemberRegistry(initial);
        vm.assertEq(other.head().members, 4);
        vm.assertEq(other.epochAt(1).active, 0x1d);
        vm.assertEq(other.signersOf(1)[1], address(0));
        refuses(
            STRANGER,
            address(other),
            abi.encodeCall(MemberRegistry.standing, (ownerOf(1))),
            abi.encodeWithSelector(MemberRegistry.NotAMember.selector, ownerOf(1))
        );
    }

    function test_three_members_cannot_found() public {
        vm.assertEq(
            founding(founders(3)), abi.encodeWithSelector(MemberRegistry.TooFewMembers.selector, 3, 4)
        );
    }

    function test_257_seats_cannot_found() public {
        vm.assertEq(
            founding(new MemberRegistry.Member[](257)),
            abi.encodeWithSelector(MemberRegistry.TooManySeats.selector, 257)
        );
    }

    function test_a_founding_seat_needs_a_role() public {
        MemberRegistry.Member[] memory initial = founders(5);
        initial[4].role = MemberRegistry.Role.NONE;
        vm.assertEq(founding(initial), abi.encodeWithSelector(MemberRegistry.RoleMissing.selector, 4));
    }

    function test_founders_share_no_key() public {
        MemberRegistry.Member[] memory initial = founders(5);
        initial[4].signer = signerOf(2);
        vm.assertEq(
            founding(initial), abi.encodeWithSelector(MemberRegistry.SignerTaken.selector, signerOf(2), 2)
        );
    }

    function test_a_quorum_admits_a_member() public {
        for (uint256 i = 0; i < 3; ++i) {
            does(ownerOf(i), address(registry), change(5, record(5)));
            vm.assertEq(registry.epoch(), 1);
        }
        vm.expectEmit(address(registry));
        emit MemberRegistry.MembershipChanged(2, 5, record(5));
        does(ownerOf(3), address(registry), change(5, record(5)));
        MemberRegistry.Head memory head = registry.head();
        vm.assertEq(head.epoch, 2);
        vm.assertEq(head.electorate, 2);
        vm.assertEq(head.size, 6);
        vm.assertEq(head.members, 6);
        vm.assertEq(head.quorum, 5);
        vm.assertEq(registry.signersOf(2)[5], signerOf(5));
        vm.assertEq(abi.encode(registry.memberAt(5)), abi.encode(record(5)));
        vm.assertEq(registry.changedAt(5), 2);
        vm.assertEq(registry.changedAt(4), 1);
    }

    function test_a_quorum_empties_a_seat_and_fills_it_again() public {
        govern(address(registry), change(4, nobody()));
        vm.assertEq(registry.head().members, 4);
        vm.assertEq(registry.head().size, 5);
        vm.assertEq(registry.epochAt(2).active, 0xf);
        vm.assertEq(registry.signersOf(2)[4], address(0));
        vm.assertTrue(registry.memberAt(4).role == MemberRegistry.Role.NONE);
        govern(address(registry), change(4, record(9)));
        vm.assertEq(registry.signersOf(3)[4], signerOf(9));
        vm.assertEq(registry.head().members, 5);
    }

    function test_of_a_removal_only_the_role_counts() public {
        MemberRegistry.Member memory r = record(8);
        r.role = MemberRegistry.Role.NONE;
        address last = propose(address(registry), change(4, r));
        vm.expectEmit(address(registry));
        emit MemberRegistry.MembershipChanged(2, 4, nobody());
        does(last, address(registry), change(4, r));
        vm.assertEq(abi.encode(registry.memberAt(4)), abi.encode(nobody()));
    }

    function test_every_epoch_remains_readable() public {
        govern(address(registry), change(5, record(5)));
        govern(address(registry), change(1, record(7)));
        govern(address(registry), change(5, nobody()));
        MemberRegistry.Member[] memory at1 = registry.members(1);
        MemberRegistry.Member[] memory at2 = registry.members(2);
        MemberRegistry.Member[] memory at3 = registry.members(3);
        MemberRegistry.Member[] memory at4 = registry.members(4);
        vm.assertEq(abi.encode(at1), abi.encode(founders(5)));
        vm.assertEq(abi.encode(at2), abi.encode(founders(6)));
        vm.assertEq(abi.encode(at3[1]), abi.encode(record(7)));
        vm.assertEq(abi.encode(at3[5]), abi.encode(record(5)));
        vm.assertEq(abi.encode(at4[5]), abi.encode(nobody()));
        vm.assertEq(registry.signersOf(2)[1], signerOf(1));
        vm.assertEq(registry.signersOf(3)[1], signerOf(7));
        vm.assertEq(registry.sizeOf(1), 5);
        vm.assertEq(registry.quorumOf(2), 5);
    }

    function test_a_member_becomes_an_auditor_and_keeps_its_keys() public {
        MemberRegistry.Member memory r = record(4);
        r.role = MemberRegistry.Role.AUDITOR;
        govern(address(registry), change(4, r));
        vm.assertEq(registry.head().members, 4);
        vm.assertEq(registry.signersOf(2)[4], address(0));
        vm.assertEq(registry.memberAt(4).signer, signerOf(4));
    }

    function test_a_removed_owner_has_no_say() public {
        govern(address(registry), change(0, nobody()));
        refuses(
            ownerOf(0),
            address(registry),
            change(5, record(5)),
            abi.encodeWithSelector(MemberRegistry.NotAMember.selector, ownerOf(0))
        );
    }

    function test_the_keys_of_a_removed_member_are_free_again() public {
        govern(address(registry), change(4, nobody()));
        govern(address(registry), change(5, record(4)));
        vm.assertEq(registry.memberAt(5).owner, ownerOf(4));
    }

    function test_a_late_approval_is_refused() public {
        govern(address(registry), change(5, record(5)));
        refuses(
            ownerOf(4),
            address(registry),
            change(5, record(5)),
            abi.encodeWithSelector(MemberRegistry.NothingChanges.selector, 5)
        );
        govern(address(registry), change(5, nobody()));
        refuses(
            ownerOf(4),
            address(registry),
            change(5, nobody()),
            abi.encodeWithSelector(MemberRegistry.EmptySeat.selector, 5)
        );
    }

    function test_four_members_remain_always() public {
        govern(address(registry), change(4, nobody()));
        bytes memory expected = abi.encodeWithSelector(MemberRegistry.TooFewMembers.selector, 3, 4);
        refuses(ownerOf(0), address(registry), change(3, nobody()), expected);
        refuses(ownerOf(0), address(registry), change(3, auditor(3)), expected);
    }

    function test_seats_are_appended_without_a_gap() public {
        refuses(
            ownerOf(0),
            address(registry),
            change(6, record(6)),
            abi.encodeWithSelector(MemberRegistry.NoSuchSeat.selector, 6, 5)
        );
    }

    function test_the_256th_seat_is_the_last() public {
        for (uint16 i = 5; i < 256; ++i) {
            govern(address(registry), change(i, auditor(i)));
        }
        vm.assertEq(registry.head().size, 256);
        vm.assertEq(registry.members(registry.epoch()).length, 256);
        govern(address(registry), change(255, record(255)));
        vm.assertEq(registry.epochAt(registry.epoch()).active, 0x1f | (1 << 255));
        does(ownerOf(255), address(registry), change(255, nobody()));
        refuses(
            ownerOf(0),
            address(registry),
            change(256, auditor(256)),
            abi.encodeWithSelector(MemberRegistry.TooManySeats.selector, 257)
        );
    }

    function test_a_record_lacks_nothing() public {
        MemberRegistry.Member memory r = record(5);
        r.owner = address(0);
        refusesRecord(r, abi.encodeWithSelector(MemberRegistry.OwnerMissing.selector, 5));
        r = record(5);
        r.signer = address(0);
        refusesRecord(r, abi.encodeWithSelector(MemberRegistry.SignerMissing.selector, 5));
        r = record(5);
        r.boxKey = 0;
        refusesRecord(r, abi.encodeWithSelector(MemberRegistry.BoxKeyMissing.selector, 5));
        r = record(5);
        r.peerId = "";
        refusesRecord(r, abi.encodeWithSelector(MemberRegistry.MalformedPeerId.selector, 5, 0));
        r.peerId = new bytes(65);
        refusesRecord(r, abi.encodeWithSelector(MemberRegistry.MalformedPeerId.selector, 5, 65));
        r = record(5);
        r.boxKeySignature = new bytes(63);
        refusesRecord(r, abi.encodeWithSelector(MemberRegistry.MalformedBoxKeySignature.selector, 5, 63));
    }

    function test_two_seats_share_neither_owner_nor_signer_nor_peer_id() public {
        MemberRegistry.Member memory r = record(5);
        r.owner = ownerOf(1);
        refusesRecord(r, abi.encodeWithSelector(MemberRegistry.OwnerTaken.selector, ownerOf(1), 1));
        r = record(5);
        r.signer = signerOf(2);
        refusesRecord(r, abi.encodeWithSelector(MemberRegistry.SignerTaken.selector, signerOf(2), 2));
        r = record(5);
        r.peerId = record(3).peerId;
        refusesRecord(r, abi.encodeWithSelector(MemberRegistry.PeerIdTaken.selector, r.peerId, 3));
    }

    function refusesRecord(MemberRegistry.Member memory r, bytes memory expected) internal {
        refuses(ownerOf(0), address(registry), change(5, r), expected);
    }

    function test_fuzz_the_latest_record_is_the_one_agreed(
        address owner,
        address signer,
        bytes32 boxKey,
        bytes32[2] calldata start,
        uint8 length,
        bytes32[2] calldata signature
    ) public {
        vm.assume(owner != address(0) && signer != address(0) && boxKey != 0);
        bytes memory peerId = bytes.concat(start[0], start[1]);
        assembly {
            mstore(peerId, add(1, mod(length, 64)))
        }
        MemberRegistry.Member memory r = MemberRegistry.Member(
            MemberRegistry.Role.MEMBER,
            owner,
            signer,
            boxKey,
            peerId,
            bytes.concat(signature[0], signature[1])
        );
        govern(address(registry), change(5, r));
        vm.assertEq(abi.encode(registry.memberAt(5)), abi.encode(r));
        vm.assertEq(abi.encode(registry.members(2)[5]), abi.encode(r));
    }

    function test_fuzz_epochs_and_bitmaps_follow_any_history(uint8[12] calldata moves) public {
        for (uint256 k = 0; k < moves.length; ++k) {
            uint16 index = 4 + moves[k] % 4;
            uint256 size = registry.head().size;
            if (index > size) index = uint16(size);
            bool empty = index == size || registry.memberAt(index).role == MemberRegistry.Role.NONE;
            govern(address(registry), change(index, empty ? record(100 + k) : nobody()));
        }
        vm.assertEq(registry.epoch(), 1 + moves.length);
        for (uint32 e = 1; e <= registry.epoch(); ++e) {
            MemberRegistry.Member[] memory records = registry.members(e);
            address[] memory signers = registry.signersOf(e);
            vm.assertEq(signers.length, records.length);
            uint256 active = 0;
            uint256 members = 0;
            for (uint256 i = 0; i < records.length; ++i) {
                vm.assertEq(signers[i], records[i].signer);
                if (records[i].role == MemberRegistry.Role.MEMBER) {
                    active |= 1 << i;
                    ++members;
                }
            }
            vm.assertEq(registry.epochAt(e).active, active);
            vm.assertEq(registry.epochAt(e).members, members);
        }
    }

    function test_a_quorum_names_a_successor_and_withdraws_it() public {
        address next = address(0xABC);
        bytes memory call = abi.encodeCall(MemberRegistry.setSuccessor, (next, bytes32(0)));
        address last = propose(address(registry), call);
        vm.expectEmit(address(registry));
        emit MemberRegistry.SuccessorSet(next);
        does(last, address(registry), call);
        vm.assertEq(registry.head().successor, next);
        refuses(
            ownerOf(4),
            address(registry),
            call,
            abi.encodeWithSelector(MemberRegistry.SuccessorUnchanged.selector, next)
        );
        govern(address(registry), abi.encodeCall(MemberRegistry.setSuccessor, (address(0), bytes32(0))));
        refuses(
            ownerOf(4),
            address(registry),
            call,
            abi.encodeWithSelector(Governed.AlreadyExecuted.selector, registry.actionId(call))
        );
        govern(address(registry), abi.encodeCall(MemberRegistry.setSuccessor, (next, bytes32(uint256(1)))));
        vm.assertEq(registry.head().successor, next);
    }

    function test_fuzz_a_stranger_names_no_successor(address stranger, address next, bytes32 salt) public {
        vm.assume(next != address(0));
        for (uint256 i = 0; i < 5; ++i) {
            vm.assume(stranger != ownerOf(i));
        }
        refuses(
            stranger,
            address(registry),
            abi.encodeCall(MemberRegistry.setSuccessor, (next, salt)),
            abi.encodeWithSelector(MemberRegistry.NotAMember.selector, stranger)
        );
    }

    function test_fuzz_an_owner_rotates_its_keys_alone(uint128 seed, bytes32 boxKey) public {
        // The keys of the founders' signers are taken.
        vm.assume(boxKey != 0 && (seed < 19_999 || seed > 20_004));
        uint256 key = uint256(seed) + 1;
        MemberRegistry.Member memory r = record(77);
        r.boxKey = boxKey;
        r.owner = ownerOf(2);
        r.signer = vm.addr(key);
        bytes memory call = rotating(2, r, key);
        vm.expectEmit(address(registry));
        emit MemberRegistry.MembershipChanged(2, 2, r);
        does(ownerOf(2), address(registry), call);
        vm.assertEq(abi.encode(registry.memberAt(2)), abi.encode(r));
        vm.assertEq(registry.signersOf(2)[2], vm.addr(key));
        vm.assertEq(registry.signersOf(1)[2], signerOf(2));
        vm.assertEq(registry.head().electorate, 1);
        vm.assertEq(registry.head().members, 5);
    }

    function test_nobody_else_rotates_a_seat() public {
        bytes memory call = rotating(2, record(77), 777);
        refuses(
            signerOf(2),
            address(registry),
            call,
            abi.encodeWithSelector(MemberRegistry.NotTheOwner.selector, 2, signerOf(2), ownerOf(2))
        );
    }

    function test_a_new_signer_must_consent() public {
        MemberRegistry.Member memory r = record(77);
        bytes32 digest = registry.digestRotation(1, 2, vm.addr(777));
        refuses(
            ownerOf(2),
            address(registry),
            rotating(2, r, vm.addr(777), sign(778, digest)),
            abi.encodeWithSelector(MemberRegistry.BadPossession.selector, 2, vm.addr(777))
        );
    }

    function test_a_consent_serves_one_change_of_the_seat() public {
        bytes memory call = rotating(2, record(77), 777);
        does(ownerOf(2), address(registry), call);
        does(ownerOf(2), address(registry), rotating(2, record(78), 778));
        refuses(
            ownerOf(2),
            address(registry),
            call,
            abi.encodeWithSelector(MemberRegistry.BadPossession.selector, 2, vm.addr(777))
        );
    }

    function test_the_change_of_another_seat_spoils_no_consent() public {
        bytes memory call = rotating(2, record(77), 777);
        does(ownerOf(3), address(registry), rotating(3, record(78), 778));
        does(ownerOf(2), address(registry), call);
        vm.assertEq(registry.epoch(), 3);
    }

    function test_rotation_to_the_present_keys_is_refused() public {
        bytes memory call = rotating(2, record(2), signerKey(2));
        refuses(
            ownerOf(2),
            address(registry),
            call,
            abi.encodeWithSelector(MemberRegistry.NothingChanges.selector, 2)
        );
    }

    function test_rotation_to_another_seats_keys_is_refused() public {
        bytes memory call = rotating(2, record(77), signerKey(3));
        refuses(
            ownerOf(2),
            address(registry),
            call,
            abi.encodeWithSelector(MemberRegistry.SignerTaken.selector, signerOf(3), 3)
        );
    }

    function test_a_member_cannot_rotate_to_no_signer() public {
        bytes32[2] memory none;
        bytes memory call = rotating(2, record(77), address(0), none);
        refuses(
            ownerOf(2),
            address(registry),
            call,
            abi.encodeWithSelector(MemberRegistry.SignerMissing.selector, 2)
        );
    }

    function test_an_auditor_rotates_without_a_signer() public {
        govern(address(registry), change(5, auditor(5)));
        MemberRegistry.Member memory r = auditor(55);
        r.owner = ownerOf(5);
        bytes32[2] memory none;
        does(ownerOf(5), address(registry), rotating(5, r, address(0), none));
        vm.assertEq(abi.encode(registry.memberAt(5)), abi.encode(r));
        vm.assertEq(registry.head().members, 5);
    }

    function test_seats_that_are_empty_or_missing_do_not_rotate() public {
        bytes32[2] memory none;
        refuses(
            ownerOf(2),
            address(registry),
            rotating(9, record(77), vm.addr(777), none),
            abi.encodeWithSelector(MemberRegistry.NoSuchSeat.selector, 9, 5)
        );
        govern(address(registry), change(4, nobody()));
        refuses(
            address(0),
            address(registry),
            rotating(4, record(77), vm.addr(777), none),
            abi.encodeWithSelector(MemberRegistry.EmptySeat.selector, 4)
        );
    }

    function test_a_member_cannot_outrun_its_removal_by_rotating() public {
        for (uint256 i = 0; i < 3; ++i) {
            does(ownerOf(i), address(registry), change(4, nobody()));
            does(ownerOf(4), address(registry), rotating(4, record(70 + i), 700 + i));
        }
        does(ownerOf(3), address(registry), change(4, nobody()));
        vm.assertTrue(registry.memberAt(4).role == MemberRegistry.Role.NONE);
    }

    function announcing(uint16 index, string[] memory addresses) internal pure returns (bytes memory) {
        return abi.encodeCall(MemberRegistry.announce, (index, addresses));
    }

    function two() internal pure returns (string[] memory addresses) {
        addresses = new string[](2);
        addresses[0] = "/ip4/127.0.0.1/tcp/4001";
        addresses[1] = "/dns4/peer.example/tcp/443";
    }

    function test_fuzz_the_last_announcement_is_kept(string[3] memory texts) public {
        string[] memory addresses = new string[](3);
        for (uint256 k = 0; k < 3; ++k) {
            vm.assume(bytes(texts[k]).length <= 256);
            addresses[k] = texts[k];
        }
        does(signerOf(1), address(registry), announcing(1, two()));
        vm.expectEmit(address(registry));
        emit MemberRegistry.AddressesAnnounced(1, addresses);
        does(signerOf(1), address(registry), announcing(1, addresses));
        vm.assertEq(abi.encode(registry.addressesOf(1)), abi.encode(addresses));
        vm.assertEq(registry.addressesOf(0).length, 0);
        vm.assertEq(registry.epoch(), 1);
    }

    function test_a_seat_announces_by_its_signer_alone() public {
        refuses(
            ownerOf(1),
            address(registry),
            announcing(1, two()),
            abi.encodeWithSelector(MemberRegistry.NotTheAnnouncer.selector, 1, ownerOf(1), signerOf(1))
        );
    }

    function test_an_auditor_announces_by_its_owner() public {
        govern(address(registry), change(5, auditor(5)));
        does(ownerOf(5), address(registry), announcing(5, two()));
        vm.assertEq(registry.addressesOf(5).length, 2);
    }

    function test_announcements_are_bounded() public {
        refuses(
            signerOf(1),
            address(registry),
            announcing(1, new string[](9)),
            abi.encodeWithSelector(MemberRegistry.TooManyAddresses.selector, 9)
        );
        string[] memory addresses = two();
        addresses[1] = string(new bytes(257));
        refuses(
            signerOf(1),
            address(registry),
            announcing(1, addresses),
            abi.encodeWithSelector(MemberRegistry.AddressTooLong.selector, 1, 257)
        );
        addresses = new string[](8);
        for (uint256 k = 0; k < 8; ++k) {
            addresses[k] = string(new bytes(256));
        }
        does(signerOf(1), address(registry), announcing(1, addresses));
    }

    function test_an_announcement_leaves_with_the_seats_occupant() public {
        does(signerOf(4), address(registry), announcing(4, two()));
        govern(address(registry), change(4, record(40)));
        vm.assertEq(registry.addressesOf(4).length, 0);
    }

    function test_an_empty_seat_announces_nothing() public {
        govern(address(registry), change(4, nobody()));
        refuses(
            address(0),
            address(registry),
            announcing(4, two()),
            abi.encodeWithSelector(MemberRegistry.EmptySeat.selector, 4)
        );
    }

    function test_fuzz_epochs_that_never_were_are_refused(uint32 number) public {
        vm.assume(number != 1);
        bytes memory expected = abi.encodeWithSelector(MemberRegistry.NoSuchEpoch.selector, number, 1);
        refuses(STRANGER, address(registry), abi.encodeCall(MemberRegistry.epochAt, (number)), expected);
        refuses(STRANGER, address(registry), abi.encodeCall(MemberRegistry.sizeOf, (number)), expected);
        refuses(STRANGER, address(registry), abi.encodeCall(MemberRegistry.quorumOf, (number)), expected);
        refuses(STRANGER, address(registry), abi.encodeCall(MemberRegistry.signersOf, (number)), expected);
        refuses(STRANGER, address(registry), abi.encodeCall(MemberRegistry.members, (number)), expected);
    }

    function test_fuzz_seats_that_never_were_are_refused(uint16 index) public {
        vm.assume(index >= 5);
        bytes memory expected = abi.encodeWithSelector(MemberRegistry.NoSuchSeat.selector, index, 5);
        refuses(STRANGER, address(registry), abi.encodeCall(MemberRegistry.memberAt, (index)), expected);
        refuses(STRANGER, address(registry), abi.encodeCall(MemberRegistry.changedAt, (index)), expected);
    }

    function test_every_owner_stands_at_its_own_seat() public view {
        for (uint16 i = 0; i < 5; ++i) {
            (uint32 electorate, uint16 seat, uint16 quorum) = registry.standing(ownerOf(i));
            vm.assertEq(electorate, 1);
            vm.assertEq(seat, i);
            vm.assertEq(quorum, 4);
        }
    }
}
